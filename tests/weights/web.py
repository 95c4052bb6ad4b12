"""A web server on the loopback interface that serves files, and breaks in the ways that servers do."""

import hashlib
import http.server
import threading


class Server:
    """Serves `files` by path ("/models/x.pth"); a context manager.

    broken: path -> how many bytes each next response may send before its connection ends.
    status: path -> status with which every request for it is refused.
    ranges: whether ranges are served; otherwise the whole file is sent.
    requests: (method, path, headers) of all requests.
    """

    def __init__(self):
        self.files, self.broken, self.status, self.headers = {}, {}, {}, {}
        self.ranges = True
        self.requests = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path, method="GET"):
        """The headers of the requests for a path."""
        return [headers for how, where, headers in self.requests if (how, where) == (method, path)]

    def repository(self, name, commit="c" * 40, **contents):
        """Serve a repository as the Hub does, with files by name (a double underscore for a dot)."""
        for file, data in contents.items():
            for revision in ("main", commit):
                path = f"/{name}/resolve/{revision}/{file.replace('__', '.')}"
                self.files[path] = data
                self.headers[path] = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(data))} | {
                    field: f'"{hashlib.sha256(data).hexdigest()}"' for field in ("X-Linked-ETag",)
                }

    def _handler(server):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer(with_body=True)

            def do_HEAD(self):
                self._answer(with_body=False)

            def _answer(self, with_body):
                server.requests.append((self.command, self.path, dict(self.headers)))
                status, own = server.status.get(self.path, (None, {}))
                if status is None and self.path not in server.files:
                    status = 404
                    own = {"X-Error-Code": server.error_code(self.path)}
                if status is not None:
                    self.send_response(status)
                    for field, value in own.items():
                        self.send_header(field, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self._send(server.files[self.path], with_body)

            def _send(self, data, with_body):
                start, whole = 0, len(data)
                tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
                asked = self.headers.get("Range", "")
                same = self.headers.get("If-Range", tag) == tag
                if server.ranges and asked and same:
                    start = int(asked.removeprefix("bytes=").partition("-")[0])
                    if start >= whole:
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{whole}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(whole - start))
                self.send_header("ETag", tag)
                for field, value in server.headers.get(self.path, {}).items():
                    self.send_header(field, value)
                self.end_headers()
                if not with_body:
                    return
                limits = server.broken.get(self.path, [])
                end = start + limits.pop(0) if limits else whole
                self.wfile.write(data[start:end])
                if end < whole:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        return Handler

    def error_code(self, path):
        """What the Hub answers about a path that it lacks: the repository or only the file."""
        repository = path.partition("/resolve/")[0]
        known = any(file.startswith(f"{repository}/resolve/") for file in self.files)
        return "EntryNotFound" if known else "RepoNotFound"
