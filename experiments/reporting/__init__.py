"""The report: every claim of the ledger with its verdict, collected once, written as Markdown and as one HTML page."""
