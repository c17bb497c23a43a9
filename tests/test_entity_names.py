"""What a slice's entity is called: by rules, and by a table of what the rules do not cover."""

import json

import pytest
from conftest import macros

NOUNS = """
accounts account, activities activity, addresses address, agencies agency, aircraft aircraft
aliases alias, alumni alumnus, analyses analysis, appendices appendix, archives archive
articles article, assets asset, atlases atlas, audits audit, avalanches avalanche, axes axis
bacteria bacterium, batches batch, biases bias, bonuses bonus, bookings booking, boxes box
branches branch, brownies brownie, buses bus, businesses business, caches cache
calories calorie, campuses campus, canvases canvas, cargoes cargo, cases case
categories category, causes cause, censuses census, cities city, classes class, clauses clause
companies company, countries country, courses course, cpus cpu, crises crisis
criteria criterion, currencies currency, customers customer, data data, databases database
days day, deliveries delivery, diagnoses diagnosis, dishes dish, documents document, echoes echo
employees employee, emojis emoji, entries entry, equipment equipment, exercises exercise
expenses expense, feedback feedback, feet foot, formulae formula, geese goose
grandchildren grandchild, children child, halves half, heroes hero, houses house
hypotheses hypothesis, inboxes inbox, indexes index, indices index, information information
inventory inventory, invoices invoice, journeys journey, keys key, kiwis kiwi, knives knife
leases lease, leaves leaf, lenses lense, licenses license, lives life, loaves loaf
matches match, matrices matrix, media media, menus menu, metadata metadata, mice mouse
movies movie, news news, objectives objective, orders order, parties party, passes pass
payments payment, people person, phases phase, phenomena phenomenon, pies pie, policies policy
potatoes potato, prices price, prizes prize, processes process, products product
properties property, purchases purchase, queries query, quizzes quiz, quotas quota, radii radius
receipts receipt, refunds refund, releases release, replies reply, responses response
roles role, salespeople salesperson, series series, sheep sheep, shelves shelf
bookshelves bookshelf, shoes shoe, sizes size, skus sku, species species, status status
statuses status, stimuli stimulus, stories story, supplies supply, surpluses surplus, taxes tax
taxis taxi, teeth tooth, theses thesis, thieves thief, ties tie, toes toe, tomatoes tomato
trays tray, uses use, vertices vertex, viruses virus, waltzes waltz, warehouses warehouse
watches watch, wishes wish, wives wife, wolves wolf, women woman, workmen workman
zombies zombie
"""
PAIRS = [tuple(pair.split()) for pair in NOUNS.replace("\n", ",").split(",") if pair.strip()]


def test_there_are_over_a_hundred_nouns() -> None:
    assert len(PAIRS) > 100


@pytest.mark.parametrize(("plural", "singular"), PAIRS)
def test_noun(plural: str, singular: str) -> None:
    assert macros("names").singular(plural) == singular


@pytest.mark.parametrize(
    ("slice_name", "entity"),
    [
        ("payments", "Payment"),
        ("line_items", "LineItem"),
        ("price_list_entries", "PriceListEntry"),
        ("sales_people", "SalesPerson"),
        ("inventory", "Inventory"),
        ("http2_streams", "Http2Stream"),
    ],
)
def test_only_the_last_word_of_a_slice_is_made_singular(slice_name: str, entity: str) -> None:
    assert macros("names").entity_of(slice_name) == entity


@pytest.mark.parametrize(
    ("event", "key"),
    [
        ("PaymentCreated", "payment_id"),
        ("LineItemAdded", "line_item_id"),
        ("SKURetired", "sku_id"),
        ("Http2StreamClosed", "http2_stream_id"),
    ],
)
def test_key_of_an_event_is_its_name_without_the_last_word(event: str, key: str) -> None:
    assert macros("names").key_of(event) == key


def test_listens_are_parsed_once_for_all_templates() -> None:
    assert json.loads(macros("grammar").parse_listens("a.PaymentCreated b.TripPaid:bill")) == [
        {
            "slice": "a",
            "event": "PaymentCreated",
            "reaction": "on_payment_created",
            "key": "payment_id",
            "noun": "payment",
        },
        {"slice": "b", "event": "TripPaid", "reaction": "bill", "key": "trip_id", "noun": "trip"},
    ]


def test_columns_are_the_fields_and_each_key_once() -> None:
    listens = [{"key": "payment_id"}, {"key": "payment_id"}]
    columns = json.loads(macros("grammar").columns_of(" a:int  b:decimal(12, 2)? ", listens))
    assert [tuple(column.values()) for column in columns] == [
        # digits, name, optional, places, type
        (None, "a", False, None, "int"),
        (12, "b", True, 2, "decimal"),
        (None, "payment_id", True, None, "uuid"),
    ]
