"""Model in, model or bytes out: pure functions that copy their argument and never mutate it."""
