"""Label a manifest with a unit model: features and assignment in one go, nothing dumped."""
