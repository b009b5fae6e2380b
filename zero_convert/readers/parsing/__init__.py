"""What the readers share: spans of a file that is not believed, pickles as symbols, zip archives, views of storages."""
