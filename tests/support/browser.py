"""A page in headless Chromium: what its scripts left in it, and the errors that they met."""

import json
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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


_ASK = """<script type="module">
let answer;
try { await window.drifting.ready; answer = await (async () => { SCRIPT })(); } catch (error) { window.faults.push(String(error)); }
await fetch("/answer", { method: "POST", body: JSON.stringify({ faults: window.faults, answer }) });
</script></body>"""
_WATCH_CONSOLE = """<script>
for (const kind of ["error", "warn"]) console[kind] = (...words) => window.faults.push(words.join(" "));
</script>"""


def visit_served(folder: Path, script: str, *, width: int = 1000, dark: bool = False) -> Any:
    """Serve a folder on the loopback, and return what a script gives for its index.html; AssertionError for an error of the page.

    Args:
        folder: the folder, which is left as it is.
        script: body of an asynchronous function, run after `window.drifting.ready`. Its value is passed as JSON.
        width: width of the window in pixels.
        dark: whether the reader prefers dark colors.
    """
    text = (folder / "index.html").read_text(encoding="utf-8")
    text = text.replace("<head>", f"<head>{_WATCH}{_WATCH_CONSOLE}", 1).replace("</body>", _ASK.replace("SCRIPT", script), 1)
    answers: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            if self.path != "/":
                return super().do_GET()
            self._send(text.encode())

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._send(b"")

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    quiet = [option for option in _QUIET if not option.startswith("--virtual-time")]
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # A port of its own, without which the browser ends once the page is loaded.
        command = [str(CHROMIUM), *quiet, f"--user-data-dir={profile}", f"--window-size={width},900", "--remote-debugging-port=0"]
        command += ["--blink-settings=preferredColorScheme=0"] if dark else []
        address = f"http://127.0.0.1:{server.server_port}/"
        browser = subprocess.Popen([*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = answers.get(timeout=60)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    assert found["faults"] == []
    return found["answer"]
