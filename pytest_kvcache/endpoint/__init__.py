"""Where requests go: addresses, what authorizes requests there, and which certificates are trusted."""
