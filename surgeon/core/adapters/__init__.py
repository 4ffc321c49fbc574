"""Adapters that were trained elsewhere: PEFT's files, and what of them a draft can carry.

May import `core/interchange` and below.
What a LoRA file may hold, and what is refused of it, goes here.
"""
