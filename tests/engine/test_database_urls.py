"""Which databases the bus takes, by their URLs."""

import pytest

from .conftest import Shop


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("nonsense", "expected sqlite:///FILE or postgresql://"),
        ("postgresql://user:secret@host:port/name", "expected sqlite:///FILE or postgresql://"),
        ("mysql://host/name", "got mysql://"),
        ("sqlite://", "expected a file"),
        ("sqlite:///:memory:", "expected a file"),
        ("sqlite:///file:shop?mode=memory&cache=shared&uri=true", "expected a file"),
        ("sqlite:///file::memory:?uri=true", "expected a file"),
        ("sqlite:///file:/shop?vfs=memdb&uri=true", "expected a file"),
        ("postgresql://host/name?sslmode=always", "one of disable, allow, prefer, require"),
        ("postgresql://host/name?channel_binding=require", r"got channel_binding\. Remove it"),
    ],
)
def test_unusable_url_is_refused(shop: Shop, url: str, complaint: str) -> None:
    with pytest.raises(shop.bus.WiringError, match=complaint) as refused:
        shop.database(url)
    assert str(refused.value).startswith("DATABASE_URL: expected ")
    assert "secret" not in str(refused.value)


def test_sslmode_is_what_the_driver_calls_ssl(shop: Shop) -> None:
    database = shop.database("postgresql://host/name?sslmode=require&host=/run/postgresql")
    assert database.url.query == {"ssl": "require", "host": "/run/postgresql"}


def test_file_is_taken_as_a_uri_too(shop: Shop) -> None:
    assert shop.database("sqlite:///file:shop.db?mode=rwc&uri=true").url.query["mode"] == "rwc"
