"""Formats that are containers of other files: OpenDocument, books, mailboxes, Outlook messages and archives."""
