"""Tests of the tables of an index, one by one."""
