from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #22262b; --soft: #5d6670; --rule: #e3e0d8; --grid: #ecebe6;
  --accent: #1f6f8b; --tint: #eef4f5; --warn: #8a4b08; --warn-tint: #fdf3e2; --good: #2f6b45; --bad: #a3292a;
  --c0: #1f6f9c; --c1: #c2571a; --c2: #2e8560; --c3: #8354a6; --c4: #a07a12; --c5: #5f6a75;
  --unit-s: 48%; --unit-l: 80%; --unit-ink: #23272c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f24; --ink: #e4e4df; --soft: #9aa3ad; --rule: #2d333a; --grid: #272d33;
    --accent: #74bfd6; --tint: #1d2b31; --warn: #e9b06a; --warn-tint: #2e2415; --good: #85c79d; --bad: #ef8d87;
    --c0: #6bb3e0; --c1: #ef9a5e; --c2: #6cc79c; --c3: #bd98e0; --c4: #d9b954; --c5: #a3adb8;
    --unit-s: 34%; --unit-l: 34%; --unit-ink: #f0efea;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main, header > div, nav > div, footer { max-width: 1180px; margin: 0 auto; padding: 0 1.25rem; }
header { padding: 2.75rem 0 1.25rem; }
h1 {
  font-size: clamp(1.6rem, 4vw, 2.2rem); font-weight: 620; letter-spacing: -.015em; line-height: 1.2; margin: 0
  0 .4rem;
}
h2 { font-size: 1.35rem; font-weight: 620; letter-spacing: -.01em; margin: 0 0 .35rem; }
h3 { font-size: 1.02rem; font-weight: 620; margin: 2rem 0 .6rem; }
p { margin: .35rem 0; max-width: 72ch; }
a { color: var(--accent); }
.soft, .legend .note, figure.missing p { color: var(--soft); }
nav {
  position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--rule);
  border-top: 1px solid var(--rule);
}
nav > div { display: flex; gap: 1.25rem; overflow-x: auto; }
nav a { padding: .6rem 0; text-decoration: none; white-space: nowrap; font-size: .92rem; color: var(--soft); }
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { padding: 2.4rem 0 .6rem; }
section + section { border-top: 1px solid var(--rule); margin-top: 2rem; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr)); gap: 1rem; margin:
  1.25rem 0;
}
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .9rem 1.1rem; }
.card .value { font-size: 1.75rem; font-weight: 600; letter-spacing: -.02em; line-height: 1.25; }
.card .name { color: var(--soft); font-size: .88rem; }
.card .detail { font-size: .88rem; margin-top: .15rem; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 1rem; margin:
  1rem 0;
}
.charts.thirds { grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
figure {
  margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .9rem 1rem
  .7rem; min-width: 0;
}
.charts figure { display: flex; flex-direction: column; } .charts figure > svg { margin: auto auto 0; }
figcaption { font-weight: 600; font-size: .98rem; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure.missing { border-style: dashed; background: none; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .25rem 0 .3rem; padding: 0;
  font-size: .85rem;
}
.legend li { display: inline-flex; align-items: center; gap: .35rem; }
figure .swatch { width: 24px; height: 14px; flex: none; }
svg text {
  font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; fill:
  var(--soft);
}
svg .label { font-size: 12.5px; }
.grid { stroke: var(--grid); } .axis { stroke: var(--soft); stroke-opacity: .55; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); }
.s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.thin .line { stroke-width: 1.4; stroke-opacity: .8; }
.bar { stroke: var(--c); stroke-width: 1.4; }
.dashed { stroke: var(--c); stroke-width: 1.5; stroke-dasharray: 6 5; }
.mark { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.mark.open { fill: var(--card); stroke: var(--c); stroke-width: 1.8; }
.marks .mark { fill-opacity: .75; }
.column { fill: var(--c); fill-opacity: .8; }
.column:hover { fill-opacity: 1; }
.hit { fill: transparent; stroke: none; } line.hit { stroke: transparent; stroke-width: 12; stroke-dasharray: none; }
details { margin-top: .5rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--soft); width: fit-content; }
summary:hover, summary:focus-visible { color: var(--accent); }
.scroll { overflow: auto; max-height: 26rem; }
table { border-collapse: collapse; font-size: .88rem; min-width: min(100%, 20rem); margin: .4rem 0; }
th, td { text-align: left; padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; } tbody th { font-weight: 500; white-space: nowrap; }
tr.chosen td, tr.chosen th { background: var(--tint); font-weight: 600; }
td.none { color: var(--soft); font-style: italic; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); gap: .15rem 1.5rem;
  margin: .9rem 0;
}
.facts div { display: flex; gap: .6rem; padding: .3rem 0; border-bottom: 1px solid var(--rule); font-size: .92rem; }
.facts dt { color: var(--soft); flex: 0 1 auto; }
.facts dd { margin: 0 0 0 auto; text-align: right; overflow-wrap: anywhere; min-width: 4em; }
.choice, .notes { background: var(--tint); border-radius: 10px; padding: .7rem 1.1rem; margin: 1rem 0; }
.notes { background: var(--warn-tint); } .notes ul { margin: .2rem 0; padding-left: 1.1rem; }
.state-failed { color: var(--bad); font-weight: 600; }
.state-missing, .state-running { color: var(--warn); font-weight: 600; }
.state-done, .state-kept { color: var(--good); }
pre, code { font: .84rem/1.5 ui-monospace, "SF Mono", Consolas, "Liberation Mono", monospace; }
pre {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .9rem 1.1rem; overflow:
  auto; max-height: 36rem;
}
code { overflow-wrap: anywhere; }
.steps table { width: 100%; } .steps code { color: var(--soft); }
.example { margin: 1rem 0; }
.tracks { display: grid; grid-template-columns: minmax(4.2rem, auto) minmax(0, 1fr); gap: .6rem; margin-top: .5rem; }
.names div { display: flex; align-items: center; justify-content: flex-end; font-size: .82rem; color: var(--soft); }
.names span { max-width: 8rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.example .scroll { overflow-y: hidden; max-height: none; }
.example svg { width: auto; height: auto; max-width: none; }
.example td { overflow-wrap: anywhere; }
.phone rect, .word rect { fill: var(--tint); stroke: var(--rule); } .phone text, .word text { fill: var(--ink); }
.unit rect { fill: hsl(var(--h) var(--unit-s) var(--unit-l)); } .unit text { fill: var(--unit-ink); }
.inside { fill: #ffffff; fill-opacity: .85; }
.border { stroke: var(--ink); stroke-opacity: .22; stroke-dasharray: 2 3; }
#tip {
  position: fixed; z-index: 3; pointer-events: none; background: var(--ink); color: var(--paper); border-radius: 6px;
  padding: .25rem .55rem; font-size: .82rem; max-width: min(24rem, 90vw);
}
footer { color: var(--soft); font-size: .88rem; padding-top: 1.5rem; padding-bottom: 3rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media print { nav, #tip { display: none; } figure, section { break-inside: avoid; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
"""

SCRIPT: Final = """
"use strict";
(function () {
  var tip = document.getElementById("tip");
  function place(event) {
    var box = tip.getBoundingClientRect();
    var left = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
    var top = event.clientY - box.height - 12;
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = (8 > top ? event.clientY + 18 : top) + "px";
  }
  document.addEventListener("pointermove", function (event) {
    var mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = mark === null;
    if (mark !== null) {
      tip.textContent = mark.getAttribute("data-tip");
      place(event);
    }
  });
  document.addEventListener("scroll", function () { tip.hidden = true; }, true);
})();
"""
