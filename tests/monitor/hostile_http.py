#!/usr/bin/env python3
"""hostile_http.py - requests that a run's page must refuse in words, and clients that it must outlive.

    hostile_http.py URL PID [RUN]           a page without token
    hostile_http.py URL PID RUN TOKEN_FILE  one that wants the token

PID: the monitor, whose memory is looked at.  Inputs 92 to 94 of the list of bad inputs.
"""
import concurrent.futures
import http.client
import json
import os
import re
import socket
import stat
import sys
import time
import urllib.parse

checks = 0
url = urllib.parse.urlparse(sys.argv[1])
host, port = url.hostname, url.port
pid = int(sys.argv[2])
where = f"{host}:{port}"
peer = ("127.0.0.1" if host not in ("127.0.0.1", "::1") else host, port)


def passed(claim, holds, detail=""):
    global checks
    if not holds:
        print(f"FAILED: {claim}: {detail}", file=sys.stderr)
        sys.exit(1)
    checks += 1
    print(f"ok {checks} - {claim}")


def raw(data, wait=20):
    """All that comes back for these bytes."""
    out = b""
    with socket.create_connection(peer, timeout=wait) as s:
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all was sent
        try:
            while more := s.recv(1 << 16):
                out += more
        except OSError:
            pass
    return out


def ask(target="/healthz", headers=None, method="GET", host_line=True, tail=b""):
    lines = [f"{method} {target} HTTP/1.1"]
    if host_line:
        lines.append("Host: " + where)
    lines += [f"{k}: {v}" for k, v in (headers or [])] + ["Connection: close"]
    return raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + tail)


def status(answer):
    m = re.match(rb"HTTP/1\.[01] (\d+)", answer)
    return int(m[1]) if m else 0


def refused(claim, answer, *codes):
    head, _, body = answer.partition(b"\r\n\r\n")
    passed(claim, status(answer) in codes and len(body.split()) >= 3 and len(answer) < 2000,
           answer[:300])
    return head


def memory():
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1])


def alive(claim):
    a = ask("/healthz")
    passed(claim, status(a) == 200 and a.endswith(b"ok\n"), a[:200])


def slow(n, first=b"GET / HTTP/1.1\r\nHost: "):
    """Connections that begin a request and do not end it."""
    out = []
    for _ in range(n):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(peer)
        out.append((s, first))
    time.sleep(0.1)
    for s, first in out:
        try:
            s.send(first)
        except OSError:
            pass
    return [s for s, _ in out]


def lines_and_headers():
    ok = ask("/")
    head = ok.partition(b"\r\n\r\n")[0].decode().lower()
    passed("the page is served", status(ok) == 200 and b"<title>" in ok, ok[:200])
    for wanted in ["content-security-policy: default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
                   "x-content-type-options: nosniff", "referrer-policy: no-referrer"]:
        passed("its headers hold " + wanted.partition(":")[0], wanted in head, head)
    page = ok.partition(b"\r\n\r\n")[2].decode()
    passed("no inline script or style, no other machine",
           not re.search(r"<script(?![^>]*src=)|<style|style=|\son[a-z]+=|https?://", page))
    refused("Host of another name is refused", ask(host_line=False, headers=[("Host", "evil.com")]), 421)
    refused("Host with another port is refused", ask(host_line=False, headers=[("Host", host + ":1")]), 421)
    passed("no Host is refused", status(ask(host_line=False)) == 400)
    passed("no Host in HTTP/1.0 is refused", status(raw(b"GET / HTTP/1.0\r\n\r\n")) == 400)
    refused("two Hosts are refused", ask(headers=[("Host", where)]), 400)
    passed("localhost is a name of it", status(ask(host_line=False, headers=[("Host", f"localhost:{port}")])) == 200)
    refused("an absolute target is refused", ask(f"http://{where}/"), 400)
    refused("another origin is refused", ask(headers=[("Origin", "http://evil.com")]), 403)
    refused("origin null is refused", ask(headers=[("Origin", "null")]), 403)
    passed("its own origin is not", status(ask(headers=[("Origin", "http://" + where)])) == 200)
    refused("a request that another site makes is refused", ask("/api/snapshot", [("Sec-Fetch-Site", "cross-site")]), 403)
    refused("65 headers are refused", ask(headers=[(f"X-{i}", "1") for i in range(70)]), 431)
    refused("headers of 20 KiB are refused", ask(headers=[("X", "y" * 10000), ("Z", "y" * 10000)]), 431)
    a = ask(headers=[("X", "y" * (1 << 20))])
    passed("a header of 1 MiB is refused", status(a) in (0, 400, 413, 431), a[:200])
    refused("a request line of 9 KiB is refused", ask("/?a=" + "b" * 9000), 414)
    a = ask("/" + "b" * (1 << 20))
    passed("a request line of 1 MiB is refused", status(a) in (0, 400, 414, 431), a[:200])
    for method in ["TRACE", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "BREW"]:
        refused(f"{method} is refused", ask(method=method), 405)
    refused("a body is refused", ask(headers=[("Content-Length", "5")], tail=b"12345"), 413)
    refused("a chunked body is refused", ask(headers=[("Transfer-Encoding", "chunked")], tail=b"5\r\n12345\r\n0\r\n\r\n"), 413)
    for target in ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f", "/index.html/../x", "/./app.js",
                   "//app.js", "/app.js%00.html", "/monitor.token", "/config.yaml", "/%", "/\x01", "/api", "/api/"]:
        refused(f"{target!r} is nothing", ask(target), 400, 404)
    for q in ["?from=%00", "?from=%zz", "?from=1&from=2", "?=1", "?" + "&".join(f"a{i}=1" for i in range(20)),
              "?from=9e9", "?from=-1", "?from=99999999999999999999", "?points=1", "?points=100000", "?from=" + "1" * 600]:
        refused(f"/api/metrics{q[:30]} is refused", ask("/api/metrics" + q), 400)
    for q in ["?limit=0", "?limit=99999", "?min_reward=nan", "?min_reward=x", "?prompt=zz", "?order=up", "?offset=-1"]:
        refused(f"/api/samples{q} is refused", ask("/api/samples" + q), 400)
    a = raw(f"GET /healthz HTTP/1.1\r\nHost: {where}\r\n\r\n".encode() + b"\xff\xfe garbage\x00\r\n\r\n" * 50)
    passed("behind a good request garbage ends the connection", status(a) == 200 and a.count(b"HTTP/1.1 200") == 1, a[:300])
    many = raw(f"GET /healthz HTTP/1.1\r\nHost: {where}\r\n\r\n".encode() * 200)
    passed("200 requests in one go are answered", many.count(b"HTTP/1.1 200") == 200, many.count(b"HTTP/1.1 200"))
    head = raw(f"HEAD / HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode())
    passed("HEAD has no body", status(head) == 200 and head.endswith(b"\r\n\r\n"))


def figures():
    snapshot = ask("/api/snapshot")
    passed("a snapshot, or words why not", status(snapshot) in (200, 404) and json.loads(snapshot.partition(b"\r\n\r\n")[2]))
    for path in ["/api/run", "/api/metrics", "/api/metrics?from=1&points=10", "/api/versions", "/api/samples?limit=3"]:
        a = ask(path)
        passed(path + " is JSON", status(a) == 200 and isinstance(json.loads(a.partition(b"\r\n\r\n")[2]), dict), a[:200])
    listed = json.loads(ask("/api/samples?limit=1").partition(b"\r\n\r\n")[2])["samples"]
    if listed:
        uid, step = listed[0]["uid"], listed[0]["step"]
        a = ask(f"/api/sample?uid={uid}&step={step}")
        s = json.loads(a.partition(b"\r\n\r\n")[2])
        n = len(s["tokens"])
        passed("a sample has text, sources and log-probs of every token",
               n > 0 and len(s["logprobs"]) == n and len(s["token_source"]) == n and isinstance(s["text"], str))
        passed("and the text of every token", s["pieces"] is not None and len(s["pieces"]) == n, a[:300])
        p = json.loads(ask("/api/prompt?prompt=" + s["prompt"]).partition(b"\r\n\r\n")[2])
        passed("its prompt is found at other steps", len(p["steps"]) > 0)
        refused("a sample that is not there is said", ask("/api/sample?uid=4000000000"), 404)
    passed("Prometheus text", b"# TYPE paceline_" in ask("/metrics"))


def events():
    c = http.client.HTTPConnection(*peer, timeout=20)
    c.request("GET", "/api/events", headers={"Host": where})
    r = c.getresponse()
    first = r.readline()
    passed("events are a stream", r.status == 200 and r.headers["Content-Type"] == "text/event-stream" and first.startswith(b"event: "), first)
    # Nobody reads these.
    deaf = []
    for _ in range(20):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(peer)
        s.sendall(f"GET /api/events HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        deaf.append(s)
    time.sleep(1)
    alive("20 that read no events hold up nobody")
    more = []
    for _ in range(6):
        s = socket.create_connection(peer, timeout=20)
        s.sendall(f"GET /api/events HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        more.append(s)
    answers = [s.recv(100) for s in more]
    passed("more than 24 streams are refused", any(b" 503 " in a for a in answers), answers)
    for s in deaf + more:
        s.close()
    c.close()


def floods():
    before = memory()
    held = slow(60)
    alive("60 that never end their request: others get in")
    for i in range(300):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(peer)
        s.close()
    alive("300 that come and go at once: others get in")
    # An answer that nobody takes.
    deaf = []
    for _ in range(12):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(20)
        s.connect(peer)
        s.sendall(f"GET /chart.js HTTP/1.1\r\nHost: {where}\r\n\r\n".encode() * 20)
        deaf.append(s)
    alive("12 that take no answer: others get in")
    after = memory()
    passed("memory is bounded", "PL_SANITIZED" in os.environ or after - before < 40000, f"{before} KB, then {after} KB")
    end = time.monotonic() + 60
    left = held[:20]
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = [s for s in left if not ended(s)]
    passed("a request that does not end is ended", not left, f"{len(left)} of 20 live")
    for s in held + deaf:
        s.close()


def ended(s):
    try:
        return s.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def token(path):
    with open(path) as f:
        text = f.read().strip()
    mode = stat.S_IMODE(os.stat(path).st_mode)
    passed("the token's file is for its owner alone", mode == 0o600 and re.fullmatch(r"[0-9a-f]{32}", text), oct(mode))
    refused("without the token nothing is shown", ask("/"), 401)
    refused("not even what is not there", ask("/nothing"), 401)
    for path in ["/api/snapshot", "/metrics", "/app.js", "/api/events"]:
        refused(path + " wants the token", ask(path), 401)
    passed("/healthz does not", status(ask("/healthz")) == 200)
    bad = ("0" if text[0] != "0" else "1") + text[1:]
    for wrong in [bad, text[:-1], text + "0", "", text.upper() + "!"]:
        refused(f"a wrong token ({len(wrong)} digits) is refused", ask("/", [("Authorization", "Bearer " + wrong)]), 401)
    refused("the token counts in no other place", ask("/api/run?token=" + text), 401)
    passed("the right one opens", status(ask("/api/run", [("Authorization", "Bearer " + text)])) == 200)
    a = ask("/?token=" + text)
    head = a.partition(b"\r\n\r\n")[0].decode()
    cookie = re.search(r"Set-Cookie: ([^;]+);(.*)", head)
    passed("in the address it becomes a cookie", status(a) == 303 and "Location: /\r" in head and cookie
           and "HttpOnly" in cookie[2] and "SameSite=Strict" in cookie[2], head)
    passed("the cookie opens", status(ask("/", [("Cookie", cookie[1])])) == 200)
    refused("a wrong cookie does not", ask("/", [("Cookie", cookie[1][:-1] + "x")]), 401)


def main():
    if len(sys.argv) > 4:
        token(sys.argv[4])
        return
    junk = [b"\x00" * 4096, b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 512, os.urandom(3000), b"GET\r\n\r\n", b"\r\n" * 3000]
    with concurrent.futures.ThreadPoolExecutor(len(junk)) as pool:
        answers = pool.map(raw, junk)
        lines_and_headers()
        figures()
        events()
        floods()
        passed("what is no request is not answered with 200", all(status(x) != 200 for x in answers))
    alive("and it is alive")


main()
