"""What nanoLoRA learns from: text `corpora`, `tasks` with batches and metrics, the `tokenizer`."""
