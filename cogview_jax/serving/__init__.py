"""The HTTP server: a loop that samples for all clients, the API of OpenAI's clients, a page."""
