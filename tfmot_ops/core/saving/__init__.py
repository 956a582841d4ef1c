"""Models on disk: saved and loaded, pruned and quantised ones included."""
