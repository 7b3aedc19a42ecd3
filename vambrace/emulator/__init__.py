"""The emulated ARM server: built from Debian packages, started, saved, dumped; nothing else knows of it."""
