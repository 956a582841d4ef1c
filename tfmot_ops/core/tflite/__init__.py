"""Model -> TFLite file, and one reader of TFLite files."""
