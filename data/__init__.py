"""What nanoLoRA learns from: `corpora` of text, `tasks` with batches and metrics, the `tokenizer`."""
