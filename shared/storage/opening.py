"""Opens a service's database where the settings say it is."""

from shared.storage.documents import Database
from shared.storage.settings import StorageSettings
from shared.storage.sqlite import SqliteDatabase


def open_database(settings: StorageSettings, service: str) -> Database:
    """MongoDB's database `prompt_upgrader_<service>`, or without a URL the file `<service>.sqlite3` in the data folder.

    Not started yet.
    """
    if settings.mongodb_url is not None:
        # The driver takes 18 MB of a process: only those that use it pay for it.
        from shared.storage.mongodb import MongoDatabase

        return MongoDatabase(settings.mongodb_url.get_secret_value(), f"prompt_upgrader_{service}")
    return SqliteDatabase(settings.data_dir / f"{service}.sqlite3")
