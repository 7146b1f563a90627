"""Commands that measure; no tests."""
