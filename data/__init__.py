"""What nanoLoRA learns from: `tasks`, the `tokenizer`, and `prepare`, which makes text files."""
