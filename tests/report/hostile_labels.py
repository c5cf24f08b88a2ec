"""Names of classes that would do harm if any of them became markup."""

HOSTILE = (
    "</script ><script>window.hacked = 1</script >",
    "<img src=x onerror='window.hacked = 2'>",
    "&lt;b&gt; \u2028 \"'`${window.hacked = 3}",
    "plain",
    "javascript:window.hacked = 4",
    "<!-- --!> <svg onload=window.hacked=5>",
    "ring",
    "-->",
    "star\x00\U0001f600",
    "]]> umbrella",
)
