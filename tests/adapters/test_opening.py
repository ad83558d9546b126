"""`open_database` opens the store that the settings name."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from deploy.local.ports import free_port
from shared.storage.documents import CollectionSpec, StorageUnavailable
from shared.storage.mongodb import MongoDatabase
from shared.storage.opening import open_database
from shared.storage.settings import StorageSettings
from shared.storage.sqlite import SqliteDatabase

ROOT = Path(__file__).parents[2]


def settings_with(mongodb_url: str | None, data_dir: Path) -> StorageSettings:
    return StorageSettings(
        mongodb_url=SecretStr(mongodb_url) if mongodb_url else None,
        data_dir=data_dir,
        redis_url=SecretStr("redis://127.0.0.1:6379/0"),
        _env_file=None,
    )


async def test_without_a_url_the_database_is_a_file_of_the_service(tmp_path: Path) -> None:
    database = open_database(settings_with(None, tmp_path / "data"), "usage")
    assert isinstance(database, SqliteDatabase)
    database.collection(CollectionSpec("things"))
    await database.start()
    await database.stop(5.0)
    assert (tmp_path / "data" / "usage.sqlite3").is_file()


def test_the_mongodb_driver_is_imported_only_when_used() -> None:
    code = "import sys, shared.storage.opening; sys.exit('motor' in sys.modules or 'pymongo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, check=False).returncode == 0


async def test_an_unreachable_mongodb_is_unavailable(tmp_path: Path) -> None:
    url = f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=200"
    database = open_database(settings_with(url, tmp_path), "usage")
    assert isinstance(database, MongoDatabase)
    things = database.collection(CollectionSpec("things"))
    with pytest.raises(StorageUnavailable):
        await database.start()
    with pytest.raises(StorageUnavailable):
        await things.get("a")


async def test_an_invalid_url_is_rejected_without_being_quoted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mongodb_url\s+Value error, must be a URL such as mongodb://host:27017"):
        open_database(settings_with("postgres://user:secret@there", tmp_path), "usage")
    database = open_database(settings_with("mongodb://user:se/cret@there:port/", tmp_path), "usage")
    with pytest.raises(ValueError, match="MONGODB_URL") as wrong:
        await database.start()
    assert "cret" not in str(wrong.value)
