"""What nanoLoRA learns from: `corpora` (text), `tasks` (batches and metrics), `tokenizer`, and the base model."""
