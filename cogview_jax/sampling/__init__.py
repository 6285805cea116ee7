"""From logits to tokens: filters, jitted decoding, super-resolution windows, scoring."""
