"""Measure units and layers: purity, PNMI, ABX, correlation with words; table, JSON and plots."""
