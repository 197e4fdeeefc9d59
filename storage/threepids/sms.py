"""How many text messages were sent, so that they cost no more a day than their operator wants."""

from storage.engine.transaction import WriteTransaction


class TextMessageStore:
    """The table of days."""

    def count_message(self, txn: WriteTransaction, day: int, most: int) -> bool:
        """Count one more on a day, and forget the days before it; False where there were so many
        already. `day`: since 1970."""
        txn.execute("DELETE FROM text_messages_sent WHERE day < ?", (day,))
        sql = (
            "INSERT INTO text_messages_sent (day, messages) VALUES (?, 1) ON CONFLICT (day)"
            " DO UPDATE SET messages = text_messages_sent.messages + 1 WHERE text_messages_sent.messages < ?"
        )
        return bool(txn.execute(sql, (day, most)))
