"""Style sheet and script of the page; both are part of it, nothing is loaded."""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --raised: #f5f7f9; --ink: #1d2630; --dim: #5f6b77;
  --line: #dde3e8; --grid: #e6eaee; --blue: #2b7bba; --pale: #d8e8f5; --orange: #b4560f; --warn: #fdf1e6; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --raised: #1c2229; --ink: #e6eaee; --dim: #9aa5b0;
  --line: #2e3740; --grid: #2a323a; --blue: #5aa3dc; --pale: #1d3a52; --orange: #eb9a57; --warn: #33261a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0 0 4px; }
p { margin: 0; }
.lead, .caption, footer { color: var(--dim); }
.caption { font-size: .9rem; margin-bottom: 12px; max-width: 72ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 24px 0; }
.tile { background: var(--raised); border-radius: 8px; padding: 14px 16px; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile small { color: var(--dim); display: block; font-size: .85rem; line-height: 1.4; }
.tile .name { color: var(--dim); font-size: .85rem; }
.notes { background: var(--warn); border-left: 4px solid var(--orange); border-radius: 4px; padding: 10px 16px;
  margin: 0 0 28px; overflow-wrap: anywhere; }
.warnings { border: 2px solid var(--orange); border-radius: 4px; font-weight: 600; padding: 10px 16px;
  margin: 0 0 28px; overflow-wrap: anywhere; }
.notes ul, .warnings ul { margin: 0; padding-left: 18px; }
.notes li, .warnings li { white-space: pre-wrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 36px 32px; }
figure, section { margin: 0; min-width: 0; }
section { margin-top: 40px; }
.plot { width: 100%; }
.plot .main-svg text { fill: var(--ink) !important; }
.plot .main-svg .xtitle, .plot .main-svg .ytitle { fill: var(--dim) !important; }
.plot .main-svg .hoverlayer text { fill: #ffffff !important; }
.plot .gridlayer path { stroke: var(--grid) !important; }
.problem { color: var(--orange); }
.samples { display: grid; gap: 16px; }
.sample { border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.sample header { margin-bottom: 6px; overflow-wrap: anywhere; }
.exit { background: var(--blue); color: var(--page); border-radius: 999px; padding: 2px 10px; font-size: .82rem;
  font-weight: 600; margin-right: 6px; display: inline-block; }
.agrees { color: var(--dim); }
.differs { color: var(--orange); font-weight: 600; }
.sample ol { list-style: none; margin: 0; padding: 0; }
.sample li { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 12px; padding: 5px 0;
  border-top: 1px solid var(--line); }
.layer { font-size: .85rem; font-weight: 600; padding-top: 2px; }
.layer small { color: var(--dim); font-weight: 400; font-size: .8rem; margin-left: 4px; }
.sample p { overflow-wrap: anywhere; max-height: 12rem; overflow: auto; }
mark { background: var(--pale); color: inherit; border-radius: 3px; padding: 1px 0; }
del { color: var(--dim); opacity: .8; }
.special { color: var(--dim); font-size: .8em; }
details { margin-top: 28px; }
summary { cursor: pointer; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin-top: 8px; }
th, td { text-align: right; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--dim); font-weight: 600; }
tr.chosen td { font-weight: 700; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 20px; margin: 0; font-size: .92rem; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 40px; font-size: .85rem; }
@media print { .sample p { max-height: none; } }
@media (max-width: 560px) {
  main { padding: 20px 14px 32px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; }
  .tile { padding: 10px 12px; }
  .tile b { font-size: 1.35rem; }
  .sample li { grid-template-columns: 1fr; gap: 0; }
}
"""

SCRIPT = """
for (const place of document.querySelectorAll(".plot")) {
  try {
    const figure = JSON.parse(document.getElementById(place.id + "-data").textContent);
    Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displayModeBar: false});
  } catch (error) {
    place.classList.add("problem");
    place.textContent = "This figure could not be drawn: " + error;
  }
}
"""
