import pytest

from curate.fetch import download
from curate.fetch.lists import ascii_url
from shared.errors import UserError


@pytest.mark.parametrize(
    ("message", "transient"),
    [
        ("HTTP Error 404: Not Found", False),
        ("HTTP Error 403: Forbidden", False),
        ("HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.", False),
        ("Use of image disallowed by X-Robots-Tag directive", False),
        ("HTTP Error 408: Request Timeout", True),
        ("HTTP Error 429: Too Many Requests", True),
        ("HTTP Error 503: Service Unavailable", True),
        ("The read operation timed out", True),
        ("<urlopen error [Errno 111] Connection refused>", True),
        ("IncompleteRead(40 bytes read, 960 more expected)", True),
    ],
)
def test_what_may_succeed_later(message, transient):
    assert download.is_transient(message) == transient


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://a.org/b%20c?d=e&f=%26#g", "http://a.org/b%20c?d=e&f=%26"),
        ("https://a.org:81/\u7d75 .png?q=\u00e9", "https://a.org:81/%E7%B5%B5%20.png?q=%C3%A9"),
        ("http://b\u00fccher.example/x", "http://xn--bcher-kva.example/x"),
    ],
)
def test_what_is_not_ascii_is_encoded(url, sent):
    assert ascii_url(url) == sent


@pytest.mark.parametrize("url", ["file:///etc/passwd", "a.png", "http://", "ftp://a/b", "data:,x", "http://[a/"])
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match=r"not an http|Invalid IPv6"):
        ascii_url(url)


def test_without_img2dataset(monkeypatch):
    download.require_img2dataset()
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match=r"illustrious-lu\[download\]"):
        download.require_img2dataset()
