"""Each row of requests that must be refused: in time, with the right words, and nobody else notices."""

import time

import pytest

import rows


def named(of):
    counts = {}
    for row in of:
        counts[row.row] = counts.get(row.row, 0) + 1
        yield pytest.param(row, id=f"{row.row}-{counts[row.row]}")


@pytest.mark.parametrize("row", list(named(rows.JSON)))
def test_body(target, row):
    begin = time.monotonic()
    answer = target.post(row.path, row.body)
    assert answer.status_code in row.statuses, answer.text[:500]
    assert row.says in answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"} if row.path.startswith("/v1") else isinstance(error, str)
        assert len(answer.text) < 4096  # what was sent is not sent back
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("row", list(named(rows.RAW)))
def test_bytes(target, row):
    with target.connect() as connection:
        try:
            connection.sendall(row.data)
        except OSError:
            pass  # refused before all of it was sent
        answer = b""
        while part := connection.recv(65536):
            answer += part
    # One answer, and the connection is closed: what follows is not read as a request.
    assert answer.startswith(b"HTTP/1.1 %d " % row.status), answer[:300]
    assert answer.count(b"HTTP/1.1 4") == 1 and b"connection: close" in answer


@pytest.mark.parametrize("row, method, path, status", [pytest.param(*p, id=f"{p[0]}-{p[1]}-{i}") for i, p in enumerate(rows.PATHS)])
def test_path(target, row, method, path, status):
    with target.connect() as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           "Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"root:" not in answer
    assert status != 405 or b"\r\nallow: " in answer


def test_all_of_them_beside_a_stream(target, beside):
    for row in rows.JSON[::3]:
        assert target.post(row.path, row.body).status_code in row.statuses, row.row
