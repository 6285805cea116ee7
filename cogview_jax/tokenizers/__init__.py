"""Text and images as ids: vocabulary, layouts, SentencePiece, image codecs."""
