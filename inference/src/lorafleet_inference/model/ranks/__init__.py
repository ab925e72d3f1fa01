"""One model on several ranks: processes that hold a part of each layer, and add up what theirs give."""
