"""The async shell. The modules of this folder are the source of the sync ones beside it: see `.ci/make_sync.py`."""
