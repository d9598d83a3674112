import sys

from langchain_openai import ChatOpenAI

url, key, model = sys.argv[1:]
chat = ChatOpenAI(model=model, base_url=url, api_key=key)
print(chat.invoke("one two three").content)
print("|".join(str(piece.content) for piece in chat.stream("one two three") if piece.content))
