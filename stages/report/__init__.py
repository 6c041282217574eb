"""The page that shows what ran: a module a section."""
