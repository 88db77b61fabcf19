"""What is asked: items, suites and the bundled repertoire. No torch."""
