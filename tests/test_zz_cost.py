import time, cProfile, pstats
import sqlalchemy as sa
from datetime import timedelta
from models import *
from farm import tracker
from tests.conftest import *
from tests.outboxes import *
from simulator.sinks import WebhookReceiver
from bambu_report import PrinterState, PrinterActivity
from dataclasses import replace

import notifications, farm.moves
FAN=[]
_o=notifications.fan_out
def _f(*a,**k):
    c=time.thread_time(); r=_o(*a,**k); db.session.flush(); FAN.append((time.thread_time()-c)*1000); return r
notifications.fan_out=_f

def test_cost(app, farm, clock):
    printer = farm.add_printer("Left", connection_type="bambu_lan", host="127.0.0.1", serial_number="01P00C000000001", access_code="12345678")["id"]
    with WebhookReceiver(clock=clock) as receiver:
        prefer(farm, printer, webhook_url=receiver.url, email_enabled=False)
        spool = farm.add_material(printer, weight_grams=100000)
        order = None
        outbox = make_outbox(app, clock)
        N=40
        ids=[farm.add_print(printer, estimated_grams=10, material_slot=0)["id"] for _ in range(N)]
        said=[]
        def note(conn,cur,statement,*r): said.append(statement)
        cpu_track=[];cpu_deliver=[]
        with app.app_context():
            eng=db.engine
        user=farm.user["id"]
        def intent(i):
            with app.app_context():
                db.session.add(StartIntent(user_id=user,printer_id=printer,print_id=i,plate=1,sha256="x",size_bytes=1,remote_name="r",submission_id=1000+i,mapping=[],state=IntentState.published,claimed_at=clock(),published_at=clock(),is_file_on_printer=True))
                db.session.commit()
        # remove start deliveries by direct
        pr=cProfile.Profile()
        for n,i in enumerate(ids):
            intent(i)
            for st,act in ((PrinterActivity.printing,"s"),(PrinterActivity.finished,"f")):
                state=PrinterState(known=True,state=st,submission_id=str(1000+i),job_name="x",progress_percent=50)
                if n==N-1:
                    sa.event.listen(eng,"before_cursor_execute",note); said.append("=== "+act)
                c0=time.thread_time()
                pass
                with app.app_context():
                    p=db.session.get(Printer,printer)
                    tracker.apply(p,state,in_state_since=clock()-timedelta(seconds=20),now=clock(),limits=app.extensions["parts"].limits)
                    db.session.commit()
                pass
                c1=time.thread_time()
                if n==N-1: said.append("=== deliver")
                pass
                assert outbox.drain(limit=1)==1
                pass
                c2=time.thread_time()
                if n>5: cpu_track.append((act,(c1-c0)*1000)); cpu_deliver.append((c2-c1)*1000)
        sa.event.remove(eng,"before_cursor_execute",note)
        for s in said: print(" ".join(s.split())[:170])
        for a in "sf": 
            v=sorted(t for k,t in cpu_track if k==a); print(a,"median ms",v[len(v)//2])
        v=sorted(cpu_deliver); print("fan median", sorted(FAN)[len(FAN)//2]); print("deliver", v[len(v)//2])
        pass
