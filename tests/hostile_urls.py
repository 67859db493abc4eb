"""Webhook URLs that must lead nowhere. `{port}` is filled in with the port of a listener that counts who comes."""

from __future__ import annotations

# Every spelling goes to the guard's port. Special addresses first, as they stand in the URL.
_SPECIAL = """
http://127.0.0.1:{port}/ http://127.0.0.1.:{port}/ http://127.1:{port}/ http://127.0.1:{port}/
http://127.255.255.254:{port}/
http://2130706433:{port}/ http://017700000001:{port}/ http://0x7f000001:{port}/ http://0X7F000001:{port}/
http://0177.0.0.1:{port}/ http://0x7f.0.0.1:{port}/ http://0x7f.1:{port}/ http://00000177.0.0.01:{port}/
http://127.0x1:{port}/
http://0:{port}/ http://0.0.0.0:{port}/ http://0x0:{port}/ http://00.0:{port}/ http://0.0.0.1:{port}/
http://localhost:{port}/ http://LOCALHOST:{port}/ http://localhost.:{port}/ http://a.localhost:{port}/
http://a.b.LocalHost.:{port}/
http://[::1]:{port}/ http://[0:0:0:0:0:0:0:1]:{port}/ http://[0000::0001]:{port}/ http://[::]:{port}/
http://[0::0]:{port}/
http://[::ffff:127.0.0.1]:{port}/ http://[::ffff:7f00:1]:{port}/ http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/
http://[::127.0.0.1]:{port}/ http://[::7f00:1]:{port}/ http://[::ffff:0:127.0.0.1]:{port}/
http://[64:ff9b::127.0.0.1]:{port}/ http://[64:ff9b::7f00:1]:{port}/ http://[64:ff9b::a9fe:a9fe]:{port}/
http://[64:ff9b:1::7f00:1]:{port}/
http://[2002:7f00:1::]:{port}/ http://[2002:7f00:0001::1]:{port}/ http://[2002:a9fe:a9fe::]:{port}/
http://[2001:0:7f00:1::]:{port}/
http://[fe80::1]:{port}/ http://[fec0::1]:{port}/ http://[fc00::1]:{port}/ http://[fd00:ec2::254]:{port}/
http://[ff02::1]:{port}/
http://[2001:db8::1]:{port}/ http://[100::1]:{port}/ http://[5f00::1]:{port}/ http://[3fff::1]:{port}/
http://10.0.0.1:{port}/ http://10.1:{port}/ http://172.16.0.1:{port}/ http://172.31.255.255:{port}/
http://192.168.0.1:{port}/
http://0xc0.0xa8.0.1:{port}/ http://3232235521:{port}/ http://169.254.169.254:{port}/latest http://2852039166:{port}/
http://0xa9fea9fe:{port}/ http://0251.0376.0251.0376:{port}/ http://[::ffff:169.254.169.254]:{port}/
http://100.100.100.200:{port}/
http://100.64.0.1:{port}/ http://192.0.0.192:{port}/ http://168.63.129.16:{port}/ http://198.18.0.1:{port}/
http://192.0.2.1:{port}/
http://224.0.0.1:{port}/ http://240.0.0.1:{port}/ http://255.255.255.255:{port}/ http://4294967295:{port}/
http://192.88.99.1:{port}/
http://１２７．０．０．１:{port}/ http://127。0。0。1:{port}/ http://①②⑦.0.0.1:{port}/ http://①②⑦。⓪。⓪。①:{port}/
http://０x7f.1:{port}/
http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/ http://ｌｏｃａｌｈｏｓｔ:{port}/ http://loc\u00adalhost:{port}/ http://\u00ad127.0.0.1:{port}/
https://127.0.0.1:{port}/ HTTPS://[::1]:{port}/ hTTp://127.0.0.1:{port}?a#b http://127.0.0.1:{port}#@example.com/
"""

_MALFORMED = """
http://%31%32%37.0.0.1:{port}/ http://127%2e0%2e0%2e1:{port}/ http://%6c%6fcalhost:{port}/
http://127.0.0.1%00.example.com:{port}/
http://[::1%25lo]:{port}/ http://[::1%lo]:{port}/ http://[fe80::1%25eth0]:{port}/ http://[::1]x:{port}/
http://[::1:{port}/
http://[v1.127]:{port}/ http://[127.0.0.1]:{port}/ http://::1:{port}/ http://127.0.0.1..:{port}/
http://localhost..:{port}/
http://1.2.3.4.5:{port}/ http://256.0.0.1:{port}/ http://08.0.0.1:{port}/ http://4294967296:{port}/ http://0x:{port}/
http://٣.1.1.1:{port}/ http://xn--a\u0080.de:{port}/ http://a\u200db.de:{port}/ http://a..b:{port}/
http://-a.example:{port}/
http://user@127.0.0.1:{port}/ http://user:pass@127.0.0.1:{port}/ http://example.com@127.0.0.1:{port}/
http://127.0.0.1:{port}@example.com/
http://example.com\\@127.0.0.1:{port}/ http:\\\\127.0.0.1:{port}/ http://127.0.0.1:{port}\\@example.com/
http:/127.0.0.1:{port}/
http:127.0.0.1:{port}/ http:///127.0.0.1:{port}/ //127.0.0.1:{port}/ 127.0.0.1:{port} http:// http://:{port}/
https://?a
ftp://127.0.0.1:{port}/ file:///etc/passwd gopher://127.0.0.1:{port}/ dict://127.0.0.1:{port}/ unix:///run/x
javascript:alert(1)
http+unix://%2frun%2fx data:,x ws://127.0.0.1:{port}/ http://127.0.0.1:0/ http://127.0.0.1:65536/
http://127.0.0.1:99999999999/
http://127.0.0.1:-1/ http://127.0.0.1:8٣/ http://127.0.0.1:8x/ http://127.0.0.1:{port}:80/ http://127.0.0.1:+80/
"""

SPECIAL_URLS = _SPECIAL.split()
MALFORMED_URLS = [
    *_MALFORMED.split(),
    "",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/ ",
    "http://127.0.0.1:{port}/a b",
    "http://127.0.0.1:{port}/\r\nX: y",
    "http://127.0.0.1:{port}/\x00",
    "ht\ttp://127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1 .example.com:{port}/",
    "http://127.0.0.1\n:{port}/",
    "http://127.0.0.1\u00a0:{port}/",
    "http://\ud800.example:{port}/",
    "http://127.0.0.1:{port}/\udcff",
    "http://" + "a" * 64 + ".example:{port}/",
    "http://" + "a." * 130 + "example:{port}/",
    "http://example.com/" + "a" * 1_982,
    "http://" + "あ" * 1_000 + ".example:{port}/",
]

HOSTILE_NAMES = {
    "loop.example": ["127.0.0.1"],
    "loop6.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "sixtofour.example": ["2002:7f00:1::"],
    "zero.example": ["0.0.0.0"],
    "linklocal.example": ["fe80::1%lo"],
    "meta.example": ["169.254.169.254"],
    "mixed.example": ["93.184.216.34", "127.0.0.1"],
    "mixed6.example": ["2606:4700::1111", "::1"],
    "lan.example": ["192.168.1.20"],
    "none.example": [],
}
