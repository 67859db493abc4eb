"""The parts behind `channels`: composing a mail, guarding an address, one bounded POST."""
