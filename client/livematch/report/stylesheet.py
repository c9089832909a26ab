"""The look of the report: light and dark, two cards a row on a desk, one on a phone."""

STYLESHEET = """
:root { color-scheme: light dark; --page: #f5f5f2; --card: #fff; --ink: #1d1f21; --faint: #6b6f76; --line: #e2e2dc;
  --good: #14804a; --bad: #c2362b; --accent: #2f6fdf; --truth: #f5b700; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --card: #1f2226; --ink: #eceef0; --faint: #9aa0a8;
  --line: #33373d; --good: #43b97c; --bad: #f0776c; --accent: #7aa8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; }
h1 { margin: 0; font-size: 26px; letter-spacing: -.01em; }
h2 { margin: 40px 0 14px; font-size: 18px; }
h2 small, .faint { color: var(--faint); font-weight: 400; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px; margin: 20px 0 0; }
.tile, article, details, .strip { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.tile span { color: var(--faint); font-size: 13px; }
.strip { margin: 12px 0 0; padding: 12px 14px 6px; }
.strip svg { display: block; width: 100%; overflow: visible; }
.strip text { fill: var(--faint); font-size: 11px; }
.strip line { stroke: var(--line); }
.strip .limit { stroke: var(--bad); stroke-dasharray: 4 3; }
.strip rect { fill: var(--accent); }
.strip rect.good { fill: var(--good); }
.strip rect.bad { fill: var(--bad); }
.tools { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 14px; }
.tools input, .tools select, .pager button { padding: 6px 10px; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); color: var(--ink); font: inherit; min-width: 0; }
.tools input { flex: 1 1 160px; }
.pager { display: flex; align-items: center; gap: 8px; font-variant-numeric: tabular-nums; }
.pager.below { justify-content: center; margin-top: 16px; }
.pager[hidden] { display: none; }
.pager button { min-width: 40px; cursor: pointer; }
.pager button:disabled { opacity: .35; cursor: default; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 16px; }
article { padding: 14px; }
article header { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; margin-bottom: 10px; }
article h3 { margin: 0 auto 0 0; font-size: 15px; overflow-wrap: anywhere; }
.badges { display: inline-flex; gap: 4px; }
.badge { padding: 0 8px; border-radius: 99px; border: 1px solid var(--good); background: var(--good);
  color: var(--card); font-size: 12px; font-weight: 600; line-height: 20px; }
.badge.missed { border-color: var(--bad); background: none; color: var(--bad); }
.pair { display: flex; gap: 10px; align-items: flex-start; }
figure { margin: 0; min-width: 0; }
.picture { position: relative; overflow: hidden; border-radius: 8px; background: var(--line); }
.picture img { display: block; width: 100%; height: auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture rect { fill: none; stroke: var(--accent); stroke-width: 3px; vector-effect: non-scaling-stroke; }
.picture rect.truth { stroke: var(--truth); stroke-width: 2px; stroke-dasharray: 5 4; }
.picture p { margin: 0; padding: 24px 12px; color: var(--bad); font-size: 13px; overflow-wrap: anywhere; }
figcaption { margin-top: 6px; color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
details { margin-top: 12px; padding: 10px 14px; }
summary { cursor: pointer; font-weight: 600; }
ul { margin: 10px 0 4px; padding: 0; list-style: none; }
.ids li { display: inline-block; margin: 0 6px 6px 0; padding: 1px 9px; border: 1px solid var(--line);
  border-radius: 99px; font-size: 13px; font-variant-numeric: tabular-nums; }
table { width: 100%; margin-top: 8px; border-collapse: collapse; font-size: 14px; }
td, th { padding: 6px 10px 6px 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { border: 0; color: var(--faint); font-weight: 400; }
th:nth-child(2) { min-width: 76px; }
.key { display: inline-block; width: 18px; height: 0; margin: 0 4px 4px 12px; border-top: 3px solid var(--accent); }
.key.truth { border-top: 2px dashed var(--truth); }
.legend { white-space: nowrap; }
.key.good, .key.bad { width: 10px; height: 10px; margin-bottom: 0; border: 0; border-radius: 2px;
  background: var(--good); }
.key.bad { background: var(--bad); }
@media (max-width: 520px) { body { padding: 18px 12px 48px; font-size: 14px; } h1 { font-size: 21px; }
  .tiles { grid-template-columns: repeat(4, 1fr); gap: 6px; } .tile { padding: 8px; } .tile b { font-size: 17px; }
  .tile span { display: block; font-size: 11px; line-height: 1.3; } article { padding: 10px; }
  article header { gap: 4px 7px; } .badge { padding: 0 6px; font-size: 11px; line-height: 18px; } }
"""
