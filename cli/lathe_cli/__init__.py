"""The `lathe` command: thin, calls the rooms."""
