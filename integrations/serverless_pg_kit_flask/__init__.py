"""Flask: one transaction for each web request, on the connections of an engine.

::

    pg = ServerlessPg(app)


    @app.get("/stock/<int:product>")
    def stock(product):
        row = pg.connection.execute("select quantity from stock where product = %s", [product]).fetchone()
        return {"quantity": row[0]}
"""

from __future__ import annotations

from serverless_pg_kit_flask.extension import ServerlessPg

__all__ = ["ServerlessPg"]
