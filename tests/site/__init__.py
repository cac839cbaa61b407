"""Tests of the documentation as a reader follows it."""
