"""Chats over the service: finds what a model name stands for and passes the engine's answer on. Never loads a model."""
