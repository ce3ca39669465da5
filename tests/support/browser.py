"""A page in headless Chromium: what its scripts left in it, and the errors that they met."""

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=4000"),
]
_WATCH = """<script>
window.faults = [];
window.addEventListener("error", (event) => window.faults.push(event.message));
window.addEventListener("unhandledrejection", (event) => window.faults.push(String(event.reason)));
</script>"""


def visit(page: Path, script: str, *, width: int = 1000, dark: bool = False) -> str:
    """Return what a script gives for a page, as text; raise AssertionError for an error of the page or of the script.

    Args:
        page: the HTML file.
        script: body of a function, run after the page's own scripts.
        width: width of the window in pixels.
        dark: whether the reader prefers dark colors.
    """
    text = page.read_text(encoding="utf-8")
    ask = f"""<script>
let answer; try {{ answer = String((() => {{ {script} }})()); }} catch (error) {{ window.faults.push(String(error)); }}
const result = document.createElement("pre"); result.id = "result";
result.textContent = window.faults.length > 0 ? "FAULT " + window.faults.join("; ") : "ANSWER " + answer;
document.body.append(result);
</script></body>"""
    watched = page.with_name(f"watched-{page.name}")
    watched.write_text(text.replace("<head>", "<head>" + _WATCH, 1).replace("</body>", ask, 1), encoding="utf-8")
    command = [CHROMIUM, *_QUIET, f"--user-data-dir={page.parent / 'browser'}", f"--window-size={width},900", "--dump-dom"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*command, watched.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="result">(ANSWER|FAULT) (.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    assert found[1] == "ANSWER", found[2]
    return found[2]
