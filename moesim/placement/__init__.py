"""Where weights and experts live, and what memory that leaves."""
