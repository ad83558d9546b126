"""Behaviour tests of the document port. Each adapter's tests inherit them and supply the database."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from shared.storage.documents import Collection, CollectionSpec, Database, DuplicateKey, Index, StorageUnavailable

KEY_INDEX = Index(("tenantId", "key"), unique=True, only_when_present="key")
SPEC = CollectionSpec(
    "things",
    (
        KEY_INDEX,
        Index(("tenantId", "createdAt")),
        Index(("counted", "batch")),
        Index(("owed",), only_when_present="owed"),
    ),
)


def a_document(id: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"_id": id or str(uuid.uuid4()), "tenantId": "t1", **fields}


def batch_of(ids: Iterable[str], batch: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns changes that count a batch in each document, at most once."""
    update = {"$inc": {"number": 1}, "$push": {"batches": {"$each": [batch], "$slice": -8}}}
    return [({"_id": id, "batches": {"$ne": batch}}, update) for id in ids]


class DocumentStoreBehaviour:
    """Subclasses override the fixture `database` with a new, empty database that is not started."""

    @pytest.fixture
    async def database(self) -> Database:
        raise NotImplementedError

    @pytest.fixture
    async def things(self, database: Database) -> AsyncIterator[Collection]:
        collection = database.collection(SPEC)
        await database.start()
        yield collection
        await database.stop(5.0)

    # Reading and inserting

    async def test_a_document_is_returned_as_inserted(self, things: Collection) -> None:
        document = a_document(
            "a",
            text="quotes \" ' and \\ and ☃ and a line\nbreak",
            none=None,
            yes=True,
            number=1.5,
            big=2**53 + 1,
            nested={"deep": {"list": [1, "two", None, {"x": 1}]}},
        )
        await things.insert(dict(document))
        assert await things.get("a") == document
        assert await things.get("b") is None

    async def test_get_many_keeps_the_order_of_the_ids(self, things: Collection) -> None:
        for id in ("a", "b", "c"):
            await things.insert(a_document(id))
        assert [d["_id"] for d in await things.get_many(["c", "missing", "a", "c"])] == ["c", "a"]
        assert await things.get_many([]) == []

    async def test_a_second_document_with_the_same_id_is_rejected(self, things: Collection) -> None:
        await things.insert(a_document("a", n=1))
        with pytest.raises(DuplicateKey) as duplicate:
            await things.insert(a_document("a", n=2))
        assert duplicate.value.index_fields == ("_id",)
        assert (await things.get("a") or {})["n"] == 1

    async def test_a_violated_unique_index_is_named(self, things: Collection) -> None:
        await things.insert(a_document(key="k"))
        for write in (things.insert, things.insert_if_absent):
            with pytest.raises(DuplicateKey) as duplicate:
                await write(a_document(key="k"))
            assert duplicate.value.index_fields == ("tenantId", "key")
        await things.insert(a_document(key="k") | {"tenantId": "t2"})
        assert await things.count({"key": "k"}) == 2

    async def test_a_partial_index_covers_only_documents_with_the_field(self, things: Collection) -> None:
        for _ in range(2):
            await things.insert(a_document())
            await things.insert(a_document(key=None))
        await things.insert(a_document("with", key="k"))
        assert await things.count({"tenantId": "t1"}) == 5
        assert await things.count({"key": {"$exists": False}}) == 4, "null counts as missing"
        assert await things.find({"key": {"$exists": True}}, sort=[("_id", 1)]) == [a_document("with", key="k")]
        assert await things.count({"key": {"$exists": True}, "_id": {"$gt": "with"}}) == 0
        assert await things.count({"key": {"$gt": "", "$nin": ["k"]}}) == 0

    async def test_one_of_many_concurrent_claims_of_a_key_wins(self, things: Collection) -> None:
        async def claim(n: int) -> bool:
            try:
                await things.insert(a_document(key="contested", n=n))
            except DuplicateKey:
                return False
            return True

        claims = await asyncio.gather(*(claim(n) for n in range(100)))
        assert claims.count(True) == 1
        winner = await things.find_one({"tenantId": "t1", "key": "contested"})
        assert winner is not None
        assert winner["n"] == claims.index(True)

    async def test_duplicates_do_not_affect_concurrent_writes(self, things: Collection) -> None:
        await things.insert(a_document("taken"))
        ids = [f"new-{n}" if n % 10 else "taken" for n in range(100)]
        results = await asyncio.gather(*(things.insert(a_document(id)) for id in ids), return_exceptions=True)
        for id, result in zip(ids, results, strict=True):
            assert isinstance(result, DuplicateKey) if id == "taken" else result is None
        assert await things.count({}) == 91

    async def test_insert_if_absent_returns_the_winner_to_all_callers(self, things: Collection) -> None:
        answers = await asyncio.gather(*(things.insert_if_absent(a_document("a", n=n)) for n in range(60)))
        assert [ours for _, ours in answers].count(True) == 1
        winner = next(n for n, (_, ours) in enumerate(answers) if ours)
        assert {stored["n"] for stored, _ in answers} == {winner}

    async def test_insert_many_if_absent_returns_the_new_ids(self, things: Collection) -> None:
        await things.insert(a_document("b", n="old"))
        inserted = await things.insert_many_if_absent([a_document(id, n="new") for id in ("a", "b", "c", "a")])
        assert inserted == {"a", "c"}
        assert {d["_id"]: d["n"] for d in await things.find({})} == {"a": "new", "b": "old", "c": "new"}
        assert await things.insert_many_if_absent([a_document("a"), a_document("c")]) == set()
        assert await things.insert_many_if_absent([]) == set()

    async def test_concurrent_insert_many_if_absent_inserts_each_document_once(self, things: Collection) -> None:
        ids = [f"e-{n}" for n in range(70)]
        answers = await asyncio.gather(
            *(things.insert_many_if_absent([a_document(id) for id in ids[start:]]) for start in range(0, 60, 6))
        )
        assert sorted(id for answer in answers for id in answer) == sorted(ids)

    async def test_insert_many_if_absent_names_the_violated_index(self, things: Collection) -> None:
        await things.insert(a_document(key="k"))
        with pytest.raises(DuplicateKey) as duplicate:
            await things.insert_many_if_absent([a_document(), a_document(key="k")])
        assert duplicate.value.index_fields == ("tenantId", "key")

    async def test_a_document_without_a_string_id_is_rejected(self, things: Collection) -> None:
        for bad in ({"n": 1}, {"_id": 5}, {"_id": ""}):
            with pytest.raises(ValueError, match="_id"):
                await things.insert(bad)

    # Finding

    async def test_find_sorts_and_limits(self, things: Collection) -> None:
        for n in (3, 1, 2, 5, 4):
            await things.insert(a_document(f"d{n}", n=n, half=n // 2))
        assert [d["n"] for d in await things.find({}, sort=[("n", 1)], limit=3)] == [1, 2, 3]
        assert [d["n"] for d in await things.find({}, sort=[("half", -1), ("n", 1)])] == [4, 5, 2, 3, 1]
        assert [d["_id"] for d in await things.find({"_id": {"$lt": "d4"}}, sort=[("_id", -1)])] == ["d3", "d2", "d1"]

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            ({"n": 2}, "b"),
            ({"n": {"$ne": 2}}, "acdefg"),
            ({"n": {"$in": [1, 3]}}, "ac"),
            ({"n": {"$nin": [1, 3]}}, "bdefg"),
            ({"n": {"$lt": 2}}, "a"),
            ({"n": {"$gte": 2, "$lt": 3}}, "b"),
            ({"n": {"$gt": 2}}, "c"),
            ({"n": {"$lte": "x"}}, "d"),
            ({"n": {"$exists": False}}, "g"),
            ({"n": {"$exists": True}}, "abcdef"),
            ({"n": None}, "fg"),
            ({"n": {"$ne": None}}, "abcde"),
            ({"n": True}, "e"),
            ({"n": {"$in": ["x", True, None]}}, "defg"),
            ({"n": {"$in": []}}, ""),
            ({"in.side": "a"}, "a"),
            ({"in.side": {"$in": ["a", "b"]}, "n": {"$gt": 1}}, "b"),
            ({"tags": "red"}, "ab"),
            ({"tags": {"$ne": "red"}}, "cdefg"),
            ({"tags": {"$nin": ["red", "blue"]}}, "defg"),
            ({"tags": {"$in": ["blue", "green"]}}, "bc"),
            ({"_id": {"$in": ["a", "z", "c"]}}, "ac"),
            ({"_id": "a", "n": 2}, ""),
            ({"tenantId": "t1", "createdAt": {"$gte": "2026-01-02", "$lt": "2026-01-04"}}, "bc"),
            ({"counted": False}, "ab"),
            ({"counted": False, "batch": {"$ne": None}}, "b"),
            ({"counted": 0}, ""),
        ],
    )
    async def test_filters(self, things: Collection, condition: dict[str, Any], expected: str) -> None:
        documents = [
            a_document("a", n=1, **{"in": {"side": "a"}}, tags=["red"], createdAt="2026-01-01", counted=False),
            a_document("b", n=2, **{"in": {"side": "b"}}, tags=["red", "blue"], createdAt="2026-01-02", counted=False),
            a_document("c", n=3, tags=["blue"], createdAt="2026-01-03", counted=True),
            a_document("d", n="x", createdAt="2026-01-04"),
            a_document("e", n=True, createdAt=None),
            a_document("f", n=None),
            a_document("g"),
        ]
        documents[1]["batch"] = "b1"
        await things.insert_many_if_absent(documents)
        found = await things.find(condition, sort=[("_id", 1)])
        assert "".join(d["_id"] for d in found) == expected
        assert await things.count(condition) == len(expected)
        one = await things.find_one(condition)
        assert (one["_id"] in expected) if one else expected == ""

    async def test_delete_many(self, things: Collection) -> None:
        await things.insert_many_if_absent([a_document(f"d{n}", n=n) for n in range(10)])
        assert await things.delete_many({"n": {"$lt": 4}}) == 4
        assert await things.delete_many({"n": {"$lt": 4}}) == 0
        assert await things.count({}) == 6

    # Updating

    async def test_each_update_operator(self, things: Collection) -> None:
        await things.insert(a_document("a", n=1, high=5, low=5, gone=1, log=[1, 2, 3], deep={"x": 1}))
        update = {
            "$set": {"state": "done", "deep.y": [1]},
            "$unset": {"gone": "", "never.there": ""},
            "$inc": {"n": 4, "deep.x": 2, "deep.new.count": 1},
            "$max": {"high": 9, "fresh": 3},
            "$min": {"low": 9},
            "$push": {"log": {"$each": [4, 5], "$slice": -3}, "notes": "first"},
            "$setOnInsert": {"state2": "not now"},
        }
        assert await things.update_one({"_id": "a"}, update) == 1
        assert await things.get("a") == a_document(
            "a",
            n=5,
            high=9,
            low=5,
            log=[3, 4, 5],
            deep={"x": 3, "y": [1], "new": {"count": 1}},
            state="done",
            fresh=3,
            notes=["first"],
        )

    async def test_an_update_reports_whether_it_matched(self, things: Collection) -> None:
        await things.insert(a_document("a", state="open"))
        assert await things.update_one({"_id": "a", "state": "closed"}, {"$set": {"n": 1}}) == 0
        assert await things.find_one_and_update({"_id": "b"}, {"$set": {"n": 1}}) is None
        assert await things.update_one({"_id": "a"}, {"$set": {"state": "open"}}) == 1, "matched, if not changed"

    async def test_find_one_and_update_returns_the_updated_document(self, things: Collection) -> None:
        await things.insert(a_document("a", version=1, state="open"))
        taken = await things.find_one_and_update({"_id": "a", "version": 1}, {"$inc": {"version": 1}})
        assert taken == a_document("a", version=2, state="open")
        assert await things.find_one_and_update({"_id": "a", "version": 1}, {"$inc": {"version": 1}}) is None

    async def test_an_upsert_starts_from_the_equalities_of_the_filter(self, things: Collection) -> None:
        filter = {"_id": "a", "tenantId": "t9", "batches": {"$ne": "b1"}}
        update = {"$inc": {"total.tokens": 5}, "$push": {"batches": "b1"}, "$setOnInsert": {"since": "today"}}
        made = await things.find_one_and_update(filter, update, upsert=True)
        assert made == {"_id": "a", "tenantId": "t9", "total": {"tokens": 5}, "batches": ["b1"], "since": "today"}
        filter["batches"] = {"$ne": "b2"}
        assert await things.update_one(filter, {"$inc": {"total.tokens": 2}, "$push": {"batches": "b2"}}) == 1
        assert (await things.get("a") or {})["total"] == {"tokens": 7}

    async def test_a_guarded_upsert_that_was_already_applied_is_a_duplicate(self, things: Collection) -> None:
        filter = {"_id": "a", "batches": {"$ne": "b1"}}
        update = {"$inc": {"n": 1}, "$push": {"batches": {"$each": ["b1"], "$slice": -100}}}
        assert await things.update_one(filter, update, upsert=True) == 1
        with pytest.raises(DuplicateKey) as duplicate:
            await things.update_one(filter, update, upsert=True)
        assert duplicate.value.index_fields == ("_id",)
        assert await things.update_one(filter, update) == 0
        assert await things.get("a") == {"_id": "a", "n": 1, "batches": ["b1"]}

    async def test_300_concurrent_upserts_are_all_counted(self, things: Collection) -> None:
        async def count(n: int) -> None:
            update = {
                "$inc": {f"by.kind{n % 3}": 1, "total": 1},
                "$max": {"highest": n},
                "$push": {"recent": {"$each": [n], "$slice": -10}},
                "$setOnInsert": {"made": 1},
            }
            assert await things.update_one({"_id": "counter", "tenantId": "t1"}, update, upsert=True) == 1

        await asyncio.gather(*(count(n) for n in range(300)))
        counter = await things.get("counter")
        assert counter is not None
        assert len(counter.pop("recent")) == 10
        assert counter == a_document("counter", by={f"kind{n}": 100 for n in range(3)}, total=300, highest=299, made=1)

    async def test_update_many_updates_every_match(self, things: Collection) -> None:
        await things.insert_many_if_absent([a_document(f"d{n}", counted=False, batch=f"b{n % 2}") for n in range(40)])
        assert await things.update_many({"counted": False, "batch": "b1"}, {"$set": {"counted": True}}) == 20
        assert await things.update_many({"counted": False, "batch": "b1"}, {"$set": {"counted": True}}) == 0
        assert await things.count({"counted": True, "batch": "b1"}) == 20
        assert await things.count({"counted": False}) == 20

    async def test_update_each_applies_every_change_by_its_own_filter(self, things: Collection) -> None:
        for id, number in (("a", 1), ("b", 2), ("c", 3)):
            await things.insert(a_document(id, number=number, done=[7]))
        await things.update_each(
            [
                (
                    {"_id": "a", "number": {"$lt": 2}},
                    {"$inc": {"number": 10}, "$push": {"done": 8}},
                ),
                ({"_id": "b", "done": {"$ne": 7}}, {"$inc": {"number": 10}}),
                (
                    {"_id": "c", "nested.count": {"$ne": 2}},
                    {"$set": {"nested.deep": 1}, "$inc": {"nested.count": 2}},
                ),
                ({"_id": "gone"}, {"$set": {"number": 1}}),
            ]
        )
        found = await things.find({}, sort=[("_id", 1)])
        assert [(t["_id"], t["number"]) for t in found] == [("a", 11), ("b", 2), ("c", 3)]
        assert found[0]["done"] == [7, 8]
        assert found[2]["nested"] == {"deep": 1, "count": 2}

    async def test_update_each_upserts_missing_documents_and_skips_applied_changes(self, things: Collection) -> None:
        await things.update_each(batch_of("bd", 1), upsert=True)
        await things.update_each(batch_of("abcde", 1), upsert=True)
        await things.update_each(batch_of("abcde", 1))
        await things.update_each(batch_of("xyz", 1))
        found = await things.find({}, sort=[("_id", 1)])
        assert [(t["_id"], t["number"], t["batches"]) for t in found] == [(id, 1, [1]) for id in "abcde"]

    async def test_concurrent_update_each_calls_are_all_counted(self, things: Collection) -> None:
        ids = [f"t{n}" for n in range(300)]
        await asyncio.gather(*(things.update_each(batch_of(ids, batch), upsert=True) for batch in (1, 2, 3, 1, 2, 3)))
        found = await things.find({}, limit=1000)
        assert [(t["number"], sorted(t["batches"])) for t in found] == [(3, [1, 2, 3])] * 300

    async def test_update_each_names_the_violated_index(self, things: Collection) -> None:
        await things.insert(a_document("a", key="k"))
        await things.insert(a_document("b"))
        take = {"$set": {"key": "k", "tenantId": "t1"}}
        for id, upsert in (("b", False), ("b", True), ("c", True)):
            with pytest.raises(DuplicateKey) as duplicate:
                await things.update_each([({"_id": id, "key": {"$ne": "k"}}, take)], upsert=upsert)
            assert duplicate.value.index_fields == ("tenantId", "key")
        assert await things.get("b") == a_document("b")
        assert await things.get("c") is None

    async def test_an_operator_without_fields_changes_nothing(self, things: Collection) -> None:
        nothing: dict[str, Any] = {"$inc": {}, "$max": {"number": 5}, "$setOnInsert": {"name": "new"}}
        await things.insert(a_document("a", number=1))
        await things.update_each([({"_id": id}, nothing) for id in ("a", "b")], upsert=True)
        await things.update_one({"_id": "c"}, nothing, upsert=True)
        assert await things.find_one_and_update({"_id": "c"}, {"$inc": {}, "$set": {"number": 6}})
        await things.update_many({"_id": "a"}, {"$inc": {}, "$set": {"name": "x"}})
        assert await things.get("a") == a_document("a", number=5, name="x")
        assert await things.get("b") == {"_id": "b", "number": 5, "name": "new"}
        assert await things.get("c") == {"_id": "c", "number": 6, "name": "new"}

    async def test_update_each_requires_distinct_ids_and_valid_updates(self, things: Collection) -> None:
        change = {"$set": {"number": 1}}
        for filters in ([{"number": 1}], [{"_id": "a"}, {"_id": "a"}], [{"_id": {"$in": ["a"]}}]):
            with pytest.raises(ValueError):
                await things.update_each([(filter, change) for filter in filters])
        with pytest.raises(ValueError):
            await things.update_each([({"_id": "a"}, {"$double": {"number": 1}})])
        await things.update_each([])

    async def test_update_each_filters_as_find_does(self, things: Collection) -> None:
        """Stores may evaluate filters of finds and of updates by different code; both must agree."""
        values: list[Any] = [None, 0, 1, 1.0, 2, True, False, "1", "a", "", [1, "a"], [True], [], {"x": 1}]
        for number, value in enumerate(values):
            await things.insert(a_document(f"d{number:02d}", value=value))
        await things.insert(a_document("d99"))
        ids = [t["_id"] for t in await things.find({}, limit=100)]
        operands: list[Any] = [None, 0, 1, 2, True, False, "1", "a"]
        conditions: list[Any] = [
            *operands,
            {"$exists": True},
            {"$exists": False},
            {"$in": [1, "a"]},
            {"$nin": [1, None]},
        ]
        conditions += [{"$ne": operand} for operand in operands]
        conditions += [{name: bound} for name in ("$lt", "$lte", "$gt", "$gte") for bound in (1, "a")]
        for number, condition in enumerate(conditions):
            if number == len(conditions) - 8:
                await things.delete_many({"_id": {"$in": ["d10", "d11", "d12"]}})  # lists have no range
            found = {t["_id"] for t in await things.find({"value": condition}, limit=100)}
            seen = {"$set": {"seen": number}}
            await things.update_each([({"_id": id, "value": condition, "seen": {"$ne": number}}, seen) for id in ids])
            assert {t["_id"] for t in await things.find({"seen": number}, limit=100)} == found, condition

    async def test_an_update_can_violate_a_unique_index(self, things: Collection) -> None:
        await things.insert(a_document("a", key="k"))
        await things.insert(a_document("b"))
        with pytest.raises(DuplicateKey) as duplicate:
            await things.update_one({"_id": "b"}, {"$set": {"key": "k", "n": 1}})
        assert duplicate.value.index_fields == ("tenantId", "key")
        assert await things.get("b") == a_document("b")
        assert await things.update_one({"_id": "a"}, {"$unset": {"key": ""}}) == 1
        assert await things.update_one({"_id": "b"}, {"$set": {"key": "k"}}) == 1, "the key is free again"

    async def test_invalid_updates_are_rejected(self, things: Collection) -> None:
        await things.insert(a_document("a", n=1))
        for update in ({}, {"$rename": {"n": "m"}}, {"$set": {"_id": "b"}}, {"$set": {"n": 1}, "$inc": {"n": 1}}):
            with pytest.raises(ValueError, match=r"update|operator|_id"):
                await things.update_one({"_id": "a"}, update)
        with pytest.raises(ValueError, match="_id"):
            await things.update_one({"n": 7}, {"$set": {"m": 1}}, upsert=True)
        assert await things.get("a") == a_document("a", n=1)

    # Lifecycle

    async def test_a_database_works_between_start_and_stop(self, database: Database) -> None:
        things = database.collection(SPEC)
        with pytest.raises(StorageUnavailable):
            await things.get("a")
        await database.start()
        await database.ping()
        await things.insert(a_document("a"))
        await database.stop(5.0)
        for use in (database.ping(), things.get("a"), things.insert(a_document("b")), things.count({})):
            with pytest.raises(StorageUnavailable):
                await use
        await database.start()
        assert await things.get("a") == a_document("a"), "data survives a restart"
        await database.stop(5.0)
