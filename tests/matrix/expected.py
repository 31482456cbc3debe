"""What is known not to work yet: (entry, fact) -> (its state, words that its reasons must hold, why). Everything else must be `yes`.

A later mend makes the entry fail until its line here is taken out; another fault than the one that is named makes it fail at once.
"""

EXPECTED = {
}
