"""Reading and writing policies: Hugging Face directories, PEFT adapters, safetensors."""
