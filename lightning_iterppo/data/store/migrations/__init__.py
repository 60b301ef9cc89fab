"""How a database becomes a store of today's form, step by step; run by Alembic."""
