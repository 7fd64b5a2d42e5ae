"""What the picture of the history looks like: light and dark, as the reader's system has it.

A shape has the colour `--c` of the generation that it belongs to.
"""

# Of the picture itself; everything in it is below the class rp, so that it can stand in any page.
PICTURE = """
.rp{--bg:#fff;--ink:#1c2330;--soft:#667085;--line:#e4e7ec;--band:#f4f5f8;--bad:#d02f3c;--on:#fff;
--c0:#3867d6;--c1:#0c8577;--c2:#8450c9;--c3:#b96a0b;--c4:#49802a;
font:12px/1.4 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
@media (prefers-color-scheme:dark){.rp{--bg:#12161f;--ink:#e6e9ef;--soft:#98a2b3;--line:#2a3140;--band:#1a202c;
--bad:#ff6b76;--on:#0f131b;--c0:#7ba0ff;--c1:#3fc4b3;--c2:#b692f6;--c3:#f2a65a;--c4:#93c572}}
.rp text{fill:var(--soft);font-size:11px}
.rp .name{fill:var(--ink);font-weight:600}
.rp .in{fill:var(--on);font-weight:600}
.rp .head{fill:var(--ink);font-size:12px;font-weight:600}
.rp .paper{fill:var(--bg)}
.rp .grid{stroke:var(--line);fill:none}
.rp .idle{fill:var(--band)}
.rp .cut{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3;fill:none}
.rp .g0{--c:var(--c0)} .rp .g1{--c:var(--c1)} .rp .g2{--c:var(--c2)} .rp .g3{--c:var(--c3)} .rp .g4{--c:var(--c4)}
.rp .none{--c:var(--soft)}
.rp .failed{--c:var(--bad)}
.rp .boot{fill:var(--c);fill-opacity:.16;stroke:var(--c);stroke-width:1;stroke-dasharray:2.5 2}
.rp .serve{fill:var(--c)}
.rp .trial{fill:var(--c);fill-opacity:.62}
.rp .drain{fill:var(--c);fill-opacity:.3}
.rp .edge{stroke:var(--c);fill:none}
.rp .job{stroke:var(--c);stroke-width:1.5;opacity:.55}
.rp .tick{stroke:var(--c);stroke-width:2}
.rp .lost{stroke:var(--bad);stroke-width:2}
.rp .tenant{font-size:9.5px}
.rp .badge{fill:var(--bad)}
.rp .cross{stroke:var(--bg);stroke-width:1.6;fill:none;stroke-linecap:round}
.rp .area{fill:var(--c);fill-opacity:.55}
.rp .errors{fill:var(--bad)}
.rp .p99{stroke:var(--ink);stroke-width:1.4;fill:none;stroke-linejoin:round}
.rp .p50{stroke:var(--soft);stroke-width:1;fill:none;stroke-linejoin:round}
.rp .mark{stroke:var(--c);stroke-width:1;stroke-dasharray:1 3;opacity:.9}
"""

# Of the page around it.
PAGE = """
body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1168px;margin:0 auto;padding:32px 24px 48px}
h1{font-size:22px;margin:0}
p{margin:4px 0 0;color:var(--soft)}
dl{display:flex;flex-wrap:wrap;gap:12px 40px;margin:24px 0}
dt{color:var(--soft);font-size:12px}
dd{margin:0;font-size:20px;font-weight:600;font-variant-numeric:tabular-nums}
dd small{font-size:12px;font-weight:400;color:var(--soft)}
dd.bad{color:var(--bad)}
figure{margin:0 0 28px;overflow-x:auto;border:1px solid var(--line);border-radius:10px}
figure{direction:rtl}  /* so that a wide picture is first seen at its end, which is now */
figure svg{display:block;direction:ltr;margin:0 auto}
.table{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}
th{font-weight:500;color:var(--soft);text-align:left;border-bottom:1px solid var(--line);padding:6px 12px 6px 0;
white-space:nowrap}
td{border-bottom:1px solid var(--line);padding:6px 12px 6px 0;vertical-align:top;font-variant-numeric:tabular-nums}
td:nth-child(4){max-width:32em}
tr.bad td:nth-child(4){color:var(--bad)}
"""
