"""Statistics: arrays and counts in, frozen dataclasses out; knows no item, model or suite."""
