"""Tests of colbert-sqlite; they import one another as ``tests.name``."""
